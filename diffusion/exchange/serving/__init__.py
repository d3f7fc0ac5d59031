"""A web page with a server: models are sampled, edited and compared in a browser."""
