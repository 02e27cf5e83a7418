"""Text encoders: phrases to vectors in the space of an encoder's text features."""
