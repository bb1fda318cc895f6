"""The paper's tables and figures at small scale: training, scoring and reports. May import all other packages."""
