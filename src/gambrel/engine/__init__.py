"""A continuous-batching replica as a discrete-event loop, and replicas behind a router."""
