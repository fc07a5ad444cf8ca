"""What agents say, and what follows from it: reports, copies of VMs, health, surveys."""
