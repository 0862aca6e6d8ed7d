"""What a dictionary's figures are worth: pure functions on vectors, autoencoders and rows, each beside its null."""
