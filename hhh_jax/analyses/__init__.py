"""What a study makes of finished runs: jobs that train nothing, one file each."""
