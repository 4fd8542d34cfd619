#!/bin/sh
# Shell code of the image's own may follow.
