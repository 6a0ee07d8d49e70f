"""The distributions of the sites: Wishart, and normals over the columns of LoRA-A."""
