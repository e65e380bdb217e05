"""Published layouts of corpora, each read into images with a place and a date."""
