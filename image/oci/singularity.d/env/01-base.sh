#!/bin/sh
# First of the environment's scripts; the rest follow in the order of their
# names.
