"""The embedded data of the quickstart: digits, and scenes made of them."""
