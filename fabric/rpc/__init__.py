"""What crosses sockets: proto conversion, error status, and the router-to-group link."""
