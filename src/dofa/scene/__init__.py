"""From scenes to features and maps."""
