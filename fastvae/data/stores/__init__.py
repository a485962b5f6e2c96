"""Where counts stay while a model trains: in memory, on disk, on the device."""
