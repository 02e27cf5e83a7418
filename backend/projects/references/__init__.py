"""References: made of the annotations that Label Studio has, and kept equal to them."""
