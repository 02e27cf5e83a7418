"""The segmenter of the profile `lite`: superpixels and graph cuts on colour and the score map."""
