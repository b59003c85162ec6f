"""What has no other home: atomic writing, checks of images."""
