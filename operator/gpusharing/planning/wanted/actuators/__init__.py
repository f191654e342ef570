"""Which of NVIDIA's programs give a node its layout, and how (`Actuator`)?"""
