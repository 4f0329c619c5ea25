"""The REST API: what the console, pipelines and the command line ask of a fleet's service."""
