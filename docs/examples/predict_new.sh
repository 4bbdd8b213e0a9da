#!/bin/bash
# An External job of RELION for a loop: predicts the particles that are new since it ran last in the same job folder.
# External executable: the full path of this file. Input particles: as ever. Param1: model, the model folder.

cryoforum=cryoforum # its full path, unless it is on PATH

while [ $# -gt 1 ]; do
    case $1 in
        --o) out=$2 ;;
        --in_parts) particles=$2 ;;
        --model) model=$2 ;;
        --j) export OMP_NUM_THREADS=$2 ;;
    esac
    shift 2
done

# RELION reads this file when it sees the flag of success; before RELION 5 the label begins with ParticlesData
cat > "${out}RELION_OUTPUT_NODES.star" <<END

data_output_nodes

loop_
_rlnPipeLineNodeName #1
_rlnPipeLineNodeTypeLabel #2
_rlnPipeLineNodeType #3
${out}predicted.star ParticleGroupMetadata.star.relion.cryoforum 3
END

flag=FAILURE # RELION looks at flag files only, so there must be one in any case
trap 'touch "${out}RELION_JOB_EXIT_$flag"' EXIT
trap 'exit 143' TERM
"$cryoforum" watch "$particles" --model "$model" -o "${out}predicted.star" --once --interval 2 || exit
flag=SUCCESS
