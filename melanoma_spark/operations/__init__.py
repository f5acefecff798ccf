"""Jobs for operators: doctor and prune."""
