"""Photos of recordings with positions: OpenSfM, KITTI, trajectories, videos beside a GPX."""
