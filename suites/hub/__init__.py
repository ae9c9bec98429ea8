"""The way to the Hugging Face hub, against a stand-in on loopback."""
