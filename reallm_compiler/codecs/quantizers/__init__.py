"""What each kind of quantizer does to a latent, and back."""
