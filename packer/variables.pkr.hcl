# Each has a default but the bundle, so that `packer build -var bundle=dist/lighthpc-x86_64.tar.gz packer` is all.

variable "bundle" {
  type        = string
  description = "The bundle that scripts/build-release makes, of the same architecture; its checksum stands beside it, in BUNDLE.sha256."
}

variable "architecture" {
  type        = string
  default     = "x86_64"
  description = "Architecture of the image: x86_64 or arm64."

  validation {
    condition     = contains(["x86_64", "arm64"], var.architecture)
    error_message = "The architecture is x86_64 or arm64."
  }
}

variable "workload" {
  type        = string
  default     = "packer/workload"
  description = "Folder with your program and an install.sh, which is run there as root: the one place for what is yours."
}

variable "settings" {
  type        = map(string)
  default     = {}
  description = "Settings of every node of this image, such as { LIGHTHPC_RESULT_BUCKET = \"my-results\" }. A stack's nodes get theirs by user data."
}

variable "region" {
  type        = string
  default     = "us-east-1"
  description = "Region to bake in, and to keep the image in."
}

variable "copy_to_regions" {
  type        = list(string)
  default     = []
  description = "More regions for the image."
}

variable "share_with_accounts" {
  type        = list(string)
  default     = []
  description = "Accounts that may launch the image. An encrypted image needs a key of yours (kms_key_id) that they may use, too."
}

variable "instance_type" {
  type        = string
  default     = ""
  description = "Instance type to bake on; empty: t3.small, or t4g.small for arm64."
}

variable "subnet_id" {
  type        = string
  default     = ""
  description = "Subnet to bake in; it must reach the internet. Empty: one of the default VPC."
}

variable "ssh_interface" {
  type        = string
  default     = "public_ip"
  description = "How the baking machine is reached: public_ip, private_ip, or session_manager (then instance_profile must allow it)."
}

variable "instance_profile" {
  type        = string
  default     = ""
  description = "Instance profile of the baking machine. It needs none, but for session_manager."
}

variable "kms_key_id" {
  type        = string
  default     = ""
  description = "KMS key that the image is encrypted with; empty: the account's key for EBS. One of your own must also be given to scripts/deploy, by --volume-key: else each instance ends at its launch."
}

variable "volume_gib" {
  type        = number
  default     = 8
  description = "Size of the root volume in GiB; a launch template may make it larger."
}

variable "name_prefix" {
  type        = string
  default     = "lighthpc"
  description = "Beginning of the image's name; architecture and time follow."
}

variable "tags" {
  type        = map(string)
  default     = {}
  description = "More tags, for the image, its snapshot, and what bakes it."
}

variable "manifest" {
  type        = string
  default     = "packer-manifest.json"
  description = "File that names the images that were made, in JSON."
}

# For a bake against an emulator of EC2, as the tests do it.

variable "ec2_endpoint" {
  type        = string
  default     = ""
  description = "Endpoint of EC2; empty: AWS's."
}
