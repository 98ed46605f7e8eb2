"""Run work in other processes and on other machines: workers, uploads, transports."""
