"""The zoom decoder: its network, model folder, search over the map, and expert."""
