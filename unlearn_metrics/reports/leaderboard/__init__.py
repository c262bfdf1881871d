"""Many records -> rows in tables -> a site. Reads record.json files and nothing else."""
