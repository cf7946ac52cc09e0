"""How each kind of autoencoder turns a matrix into a latent, and back."""
