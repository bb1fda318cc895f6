"""The paper's tables and figures in small: what is trained, and what is made of it. Above all other packages."""
