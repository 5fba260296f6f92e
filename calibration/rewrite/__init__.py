"""From the float graphs and the scales to the graphs of one recipe."""
