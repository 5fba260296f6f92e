"""From files to the encoder's inputs: pictures, sound, video, text."""
