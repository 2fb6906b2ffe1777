"""Synchronise two systems from their signals: a recording with two clocks in, the map between the clocks out."""
