#!/bin/sh
# Sets up the app of the Scientific Filesystem that --app asks for.

if [ -n "${SINGULARITY_APPNAME:-}" ]; then
    SCIF_APPS=/scif/apps
    SCIF_APPROOT="$SCIF_APPS/$SINGULARITY_APPNAME"
    if [ ! -d "$SCIF_APPROOT" ]; then
        echo "This image has no app named $SINGULARITY_APPNAME" >&2
        exit 1
    fi
    export SINGULARITY_APPNAME SCIF_APPS SCIF_APPROOT

    PATH="$SCIF_APPROOT:$SCIF_APPS/singularity:$PATH"
    if [ -d "$SCIF_APPROOT/bin" ]; then
        PATH="$SCIF_APPROOT/bin:$PATH"
    elif [ -d "$SCIF_APPS/singularity/bin" ]; then
        PATH="$SCIF_APPS/singularity/bin:$PATH"
    fi
    export PATH

    if [ -d "$SCIF_APPROOT/lib" ]; then
        LD_LIBRARY_PATH="$SCIF_APPROOT/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        export LD_LIBRARY_PATH
    elif [ -d "$SCIF_APPS/singularity/lib" ]; then
        LD_LIBRARY_PATH="$SCIF_APPS/singularity/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        export LD_LIBRARY_PATH
    fi

    if [ -f "$SCIF_APPROOT/scif/env/01-base.sh" ]; then
        . "$SCIF_APPROOT/scif/env/01-base.sh"
    elif [ -f "$SCIF_APPS/singularity/scif/env/01-base.sh" ]; then
        . "$SCIF_APPS/singularity/scif/env/01-base.sh"
    fi
    if [ -f "$SCIF_APPROOT/scif/env/90-environment.sh" ]; then
        . "$SCIF_APPROOT/scif/env/90-environment.sh"
    elif [ -f "$SCIF_APPS/singularity/scif/env/90-environment.sh" ]; then
        . "$SCIF_APPS/singularity/scif/env/90-environment.sh"
    fi
fi
