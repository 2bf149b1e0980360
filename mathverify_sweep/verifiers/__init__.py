"""From checkpoint to use: finished runs as verifiers, evaluated, compared, combined, asked, and exported."""
