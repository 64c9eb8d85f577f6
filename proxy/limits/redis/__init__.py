"""The limits store on a Redis server, shared by workers and machines."""
