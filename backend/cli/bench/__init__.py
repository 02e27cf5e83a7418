"""The `bench` command: what matching, pipeline, service and a whole project cost on this machine."""
