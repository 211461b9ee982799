"""A log as a page to look at: `fsm-train view`. README.md says how it is built."""
