#!/bin/bash
# Submission script for RELION's External job under SLURM; RELION fills in XXX...XXX.
# XXXextra1XXX: GPUs of each machine, the parameter devices. XXXextra2XXX: machines, the parameter num_nodes.
#SBATCH --job-name=XXXnameXXX
#SBATCH --partition=XXXqueueXXX
#SBATCH --nodes=XXXextra2XXX
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=XXXthreadsXXX
#SBATCH --gpus-per-node=XXXextra1XXX
#SBATCH --mem=64G
#SBATCH --time=8:00:00
#SBATCH --output=XXXoutfileXXX
#SBATCH --error=XXXerrfileXXX

XXXcommandXXX
