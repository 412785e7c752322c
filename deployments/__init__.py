"""Ray Serve apps: builders that wire the library to the network. Configurations lie beside them."""
