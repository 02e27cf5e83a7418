"""The paper's figure: from scribbles to reference masks, from references to masks on other images."""
