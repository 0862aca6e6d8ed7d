"""What a sparse dictionary is: the autoencoder, the mechanisms that make its code sparse, its file format."""
