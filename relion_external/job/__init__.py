"""The RELION External job: arguments, the contract with RELION, the steps, and templates."""
