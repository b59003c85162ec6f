"""The web demo: everything but the page works without gradio."""
