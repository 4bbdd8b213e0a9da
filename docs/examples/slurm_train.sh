#!/bin/bash
# Train on two machines with four GPUs each: sbatch slurm_train.sh
#SBATCH --job-name=cryoforum
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=8:00:00

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# --resume goes on where a job before was ended, and begins where there was none
srun --kill-on-bad-exit=1 /path/to/cryoforum-env/bin/cryoforum train run_data.star -o model \
    --devices 4 --num-nodes 2 --resume
