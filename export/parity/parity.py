"""What a comparison of exported graphs with their model has compared, and how close they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Parity:
    """The result of comparing exported graphs with their model.

    Attributes:
        sequences: number of sequences decoded from the check inputs.
        steps: number of tokens compared in them, summed over the sequences.
        prompts: number of sequences decoded from random prompts.
        prompt_steps: number of tokens compared in them, summed over the sequences.
        longest: largest number of tokens that a compared sequence had.
        sizes: sizes of the inputs that the random prompts were decoded with, one text for each.
        ties: number of tokens that differ where the model's two best logits are closer than
            rounding; both sides went on with the model's token.
        largest_difference: largest absolute difference of any logit; NaN if a logit is NaN.
        accepted_difference: largest difference that was accepted for any logit.
    """

    sequences: int = 0
    steps: int = 0
    prompts: int = 0
    prompt_steps: int = 0
    longest: int = 0
    sizes: list[str] = field(default_factory=list)
    ties: int = 0
    largest_difference: float = 0.0
    accepted_difference: float = 0.0

    def add(self, other: Parity) -> None:
        """Adds the counts and the largest differences of another comparison."""
        self.sequences += other.sequences
        self.steps += other.steps
        self.prompts += other.prompts
        self.prompt_steps += other.prompt_steps
        self.longest = max(self.longest, other.longest)
        self.sizes += [size for size in other.sizes if size not in self.sizes]
        self.ties += other.ties
        self.accepted_difference = max(self.accepted_difference, other.accepted_difference)
        # np.maximum, unlike max(), never replaces a NaN
        self.largest_difference = float(
            np.maximum(self.largest_difference, other.largest_difference)
        )

    def add_as_prompts(self, other: Parity) -> None:
        """Does the same as `add`, but counts the other sequences as random prompts."""
        self.add(other)
        self.sequences -= other.sequences
        self.steps -= other.steps
        self.prompts += other.sequences
        self.prompt_steps += other.steps
