"""The only door to Ray: clusters, Ray Train, Ray Tune, and the jobs of a cluster."""
