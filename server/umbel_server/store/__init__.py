"""The store: everything the services know, one interface per subject."""
