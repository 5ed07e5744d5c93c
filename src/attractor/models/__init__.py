"""The models: each file holds one configuration and one model, as mathematics."""
