"""HTML pages of runs and manifests."""
