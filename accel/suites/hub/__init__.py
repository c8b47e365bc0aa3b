"""Real pipelines, from a folder or the hub."""

from accel.suites.hub.suite import HubSuite

__all__ = ["HubSuite"]
