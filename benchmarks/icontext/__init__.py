"""IconText: a real image-text data set built from public packages."""
