"""Ranks that compute together: meshes of devices, groups with collectives, their rendezvous."""
