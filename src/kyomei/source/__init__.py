"""Where activations come from: text, a language model and a site in it, or a planted model."""
