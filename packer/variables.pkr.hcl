# Only `bundle` has no default. Shortest command: `packer build -var bundle=dist/lighthpc-x86_64.tar.gz packer`.

variable "bundle" {
  type        = string
  description = "The bundle that scripts/build-release makes for the same architecture. The file BUNDLE.sha256 in the same folder has its checksum."
}

variable "architecture" {
  type        = string
  default     = "x86_64"
  description = "Architecture of the image: x86_64 or arm64."

  validation {
    condition     = contains(["x86_64", "arm64"], var.architecture)
    error_message = "The architecture must be x86_64 or arm64."
  }
}

variable "workload" {
  type        = string
  default     = "packer/workload"
  description = "Folder with your program and an install.sh, which runs there as root. Put your own files only here."
}

variable "settings" {
  type        = map(string)
  default     = {}
  description = "Settings of every node of this image, such as { LIGHTHPC_RESULT_BUCKET = \"my-results\" }. The nodes of a stack get their settings by user data."
}

variable "region" {
  type        = string
  default     = "us-east-1"
  description = "Region in which the image is baked and kept."
}

variable "copy_to_regions" {
  type        = list(string)
  default     = []
  description = "Additional regions to which the image is copied."
}

variable "share_with_accounts" {
  type        = list(string)
  default     = []
  description = "Accounts that may launch the image. An encrypted image needs a key of your own (kms_key_id) that these accounts may use."
}

variable "instance_type" {
  type        = string
  default     = ""
  description = "Instance type for the bake. Empty means t3.small, or t4g.small for arm64."
}

variable "subnet_id" {
  type        = string
  default     = ""
  description = "Subnet for the bake. It must reach the internet. Empty means a subnet of the default VPC."
}

variable "ssh_interface" {
  type        = string
  default     = "public_ip"
  description = "How Packer connects to the build instance: public_ip, private_ip, or session_manager (which instance_profile must allow)."
}

variable "instance_profile" {
  type        = string
  default     = ""
  description = "Instance profile of the build instance. Only session_manager needs one."
}

variable "kms_key_id" {
  type        = string
  default     = ""
  description = "KMS key that encrypts the image. Empty means the account's key for EBS. Give a key of your own also to scripts/deploy, by --volume-key; otherwise each instance terminates at its launch."
}

variable "volume_gib" {
  type        = number
  default     = 8
  description = "Size of the root volume in GiB. A launch template may increase it."
}

variable "name_prefix" {
  type        = string
  default     = "lighthpc"
  description = "Beginning of the image's name. The architecture and the time follow."
}

variable "tags" {
  type        = map(string)
  default     = {}
  description = "Additional tags for the image, its snapshot, the build instance, and its volume."
}

variable "manifest" {
  type        = string
  default     = "packer-manifest.json"
  description = "File that lists the new images, in JSON."
}

# For a bake against an emulator of EC2, as in the tests.

variable "ec2_endpoint" {
  type        = string
  default     = ""
  description = "Endpoint of EC2. Empty means AWS's endpoint."
}
